// Where logs, traces and metrics go.
@description('Region.')
param location string

@description('Makes names unique.')
param token string

@description('Tags of every resource.')
param tags object

@description('How many days logs are kept. The first 31 cost nothing beyond what coming in costs.')
@minValue(30)
@maxValue(730)
param retentionDays int

@description('The most that may come in on a day, in GB; -1: no limit.')
param dailyLimitGB int

resource logs 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: 'log-${token}'
  location: location
  tags: tags
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: retentionDays
    workspaceCapping: { dailyQuotaGb: dailyLimitGB }
    features: { disableLocalAuth: true }
  }
}

resource insights 'Microsoft.Insights/components@2020-02-02' = {
  name: 'appi-${token}'
  location: location
  tags: tags
  kind: 'web'
  properties: {
    Application_Type: 'web'
    WorkspaceResourceId: logs.id
    // The connection string is then an address and opens nothing.
    DisableLocalAuth: true
  }
}

output logsId string = logs.id
output insightsId string = insights.id
output insightsName string = insights.name
output insightsAddress string = insights.properties.ConnectionString
