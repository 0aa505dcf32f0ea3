// The function app on a Flex Consumption plan, and everything it is told by settings.
@description('Region.')
param location string

@description('Makes names unique.')
param token string

@description('Tags of every resource.')
param tags object

@description('Resource id of the identity that the app runs as.')
param identityId string

@description('Client id of that identity.')
param identityClientId string

@description('Account of the Functions host.')
param hostAccount string

@description('Blob endpoint of that account.')
param hostBlobEndpoint string

@description('Container of the package.')
param packageContainer string

@description('Settings that main.bicep knows: `DROPFORGE_*` and the like.')
param appSettings object

@description('Address of Application Insights.')
param insightsAddress string

@description('Host name of the Service Bus namespace.')
param serviceBusHost string

@description('Memory of an instance.')
@allowed([512, 2048, 4096])
param instanceMemoryMB int

@description('The most instances at a time.')
@minValue(1)
@maxValue(1000)
param maximumInstances int

@description('Instances that are always there for requests, and as many for flows.')
@minValue(0)
param alwaysReady int

@description('Client id of the Entra application that guards the app; empty: App Service authentication stays off.')
param apiClientId string

@description('Whether every request must carry a token of that application.')
param tokensOnly bool

@description('Subnet that the app calls out from; empty: none.')
param subnetId string

@description('Whether the app is reached through its private endpoint, and by Azure Monitor only besides.')
param privateNetworking bool

// Without an action group that calls in, nothing at all needs the public address.
var closed = privateNetworking && empty(apiClientId)

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: 'plan-${token}'
  location: location
  tags: tags
  sku: { name: 'FC1', tier: 'FlexConsumption' }
  kind: 'functionapp'
  properties: { reserved: true }
}

resource app 'Microsoft.Web/sites@2024-04-01' = {
  name: 'func-${token}'
  location: location
  tags: union(tags, { 'azd-service-name': 'app' })
  kind: 'functionapp,linux'
  identity: { type: 'UserAssigned', userAssignedIdentities: { '${identityId}': {} } }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    publicNetworkAccess: closed ? 'Disabled' : 'Enabled'
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    siteConfig: {
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
      ipSecurityRestrictionsDefaultAction: privateNetworking ? 'Deny' : 'Allow'
      ipSecurityRestrictions: privateNetworking
        ? [
            // Action groups call the door for alerts, with a token.
            {
              name: 'azure-monitor'
              priority: 100
              action: 'Allow'
              tag: 'ServiceTag'
              ipAddress: 'ActionGroup'
            }
          ]
        : []
      scmIpSecurityRestrictionsDefaultAction: privateNetworking ? 'Deny' : 'Allow'
    }
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${hostBlobEndpoint}${packageContainer}'
          authentication: { type: 'UserAssignedIdentity', userAssignedIdentityResourceId: identityId }
        }
      }
      scaleAndConcurrency: {
        instanceMemoryMB: instanceMemoryMB
        maximumInstanceCount: maximumInstances
        alwaysReady: alwaysReady > 0
          ? [
              { name: 'http', instanceCount: alwaysReady }
              { name: 'durable', instanceCount: alwaysReady }
            ]
          : []
      }
      runtime: { name: 'python', version: '3.13' }
    }
  }
}

resource settings 'Microsoft.Web/sites/config@2024-04-01' = {
  parent: app
  name: 'appsettings'
  properties: union(appSettings, {
    AZURE_CLIENT_ID: identityClientId
    AzureWebJobsStorage__accountName: hostAccount
    AzureWebJobsStorage__credential: 'managedidentity'
    AzureWebJobsStorage__clientId: identityClientId
    APPLICATIONINSIGHTS_CONNECTION_STRING: insightsAddress
    APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
    SERVICE_BUS__fullyQualifiedNamespace: serviceBusHost
    SERVICE_BUS__credential: 'managedidentity'
    SERVICE_BUS__clientId: identityClientId
  })
}

// Tokens of the application are read and believed; whether one is needed, `tokensOnly` says. The application issues tokens
// of version 2 (docs/deploy.md), whose issuer this is.
resource authentication 'Microsoft.Web/sites/config@2024-04-01' = if (length(apiClientId) > 0) {
  parent: app
  name: 'authsettingsV2'
  properties: {
    platform: { enabled: true }
    globalValidation: {
      requireAuthentication: tokensOnly
      unauthenticatedClientAction: tokensOnly ? 'Return401' : 'AllowAnonymous'
      // What the app itself answers to anybody.
      excludedPaths: ['/api/health', '/api/openapi.json']
    }
    identityProviders: {
      azureActiveDirectory: {
        enabled: true
        registration: {
          clientId: apiClientId
          openIdIssuer: '${environment().authentication.loginEndpoint}${tenant().tenantId}/v2.0'
        }
        validation: { allowedAudiences: [apiClientId, 'api://${apiClientId}'] }
      }
    }
    login: { tokenStore: { enabled: false } }
  }
  dependsOn: [settings]
}

output id string = app.id
output name string = app.name
output host string = app.properties.defaultHostName
