// What happens in the lake and in the workspace, told to the queue `events`; what cannot be delivered is kept as a blob.
//
// The topics deliver as identities of their own: behind a firewall Event Grid may use no other
// (https://learn.microsoft.com/azure/event-grid/deliver-events-using-managed-identity#firewall-and-virtual-network-rules).
@description('Region.')
param location string

@description('Makes names unique.')
param token string

@description('Tags of every resource.')
param tags object

@description('Resource id of the account of the data.')
param lakeId string

@description('Container that people drop files into.')
param dropContainer string

@description('Resource id of the Azure ML workspace.')
param workspaceId string

@description('Service Bus namespace.')
param serviceBus string

@description('Queue that takes the events.')
param queueName string

@description('Account that keeps what could not be delivered.')
param deadLetterAccount string

@description('Container that keeps what could not be delivered.')
param deadLetterContainer string

var roles = loadJsonContent('../roles.json')

resource bus 'Microsoft.ServiceBus/namespaces@2024-01-01' existing = {
  name: serviceBus
}

resource queue 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' existing = {
  parent: bus
  name: queueName
}

resource account 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: deadLetterAccount
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2024-01-01' existing = {
  parent: account
  name: 'default'
}

resource letters 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' existing = {
  parent: blobs
  name: deadLetterContainer
}

resource lakeTopic 'Microsoft.EventGrid/systemTopics@2025-02-15' = {
  name: 'egst-lake-${token}'
  location: location
  tags: tags
  identity: { type: 'SystemAssigned' }
  properties: { source: lakeId, topicType: 'Microsoft.Storage.StorageAccounts' }
}

resource workspaceTopic 'Microsoft.EventGrid/systemTopics@2025-02-15' = {
  name: 'egst-ml-${token}'
  location: location
  tags: tags
  identity: { type: 'SystemAssigned' }
  properties: { source: workspaceId, topicType: 'Microsoft.MachineLearningServices.Workspaces' }
}

// Event Grid puts what happens in the lake into this queue.
resource lakeDelivers 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(queue.id, lakeTopic.id, roles.serviceBusDataSender)
  scope: queue
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.serviceBusDataSender)
    principalId: lakeTopic.identity.principalId
    principalType: 'ServicePrincipal'
  }
}

// Event Grid puts what happens to jobs into this queue.
resource workspaceDelivers 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(queue.id, workspaceTopic.id, roles.serviceBusDataSender)
  scope: queue
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.serviceBusDataSender)
    principalId: workspaceTopic.identity.principalId
    principalType: 'ServicePrincipal'
  }
}

// Event Grid keeps what it could not deliver.
resource lakeKeeps 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(letters.id, lakeTopic.id, roles.storageBlobDataContributor)
  scope: letters
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.storageBlobDataContributor)
    principalId: lakeTopic.identity.principalId
    principalType: 'ServicePrincipal'
  }
}

// Event Grid keeps what it could not deliver.
resource workspaceKeeps 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(letters.id, workspaceTopic.id, roles.storageBlobDataContributor)
  scope: letters
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.storageBlobDataContributor)
    principalId: workspaceTopic.identity.principalId
    principalType: 'ServicePrincipal'
  }
}

resource dropped 'Microsoft.EventGrid/systemTopics/eventSubscriptions@2025-02-15' = {
  parent: lakeTopic
  name: 'drops-to-queue'
  properties: {
    eventDeliverySchema: 'CloudEventSchemaV1_0'
    filter: {
      includedEventTypes: [
        'Microsoft.Storage.BlobCreated'
        'Microsoft.Storage.BlobDeleted'
        'Microsoft.Storage.BlobRenamed'
        'Microsoft.Storage.DirectoryRenamed'
        'Microsoft.Storage.DirectoryDeleted'
      ]
      subjectBeginsWith: '/blobServices/default/containers/${dropContainer}/'
    }
    deliveryWithResourceIdentity: {
      identity: { type: 'SystemAssigned' }
      destination: { endpointType: 'ServiceBusQueue', properties: { resourceId: queue.id } }
    }
    deadLetterWithResourceIdentity: {
      identity: { type: 'SystemAssigned' }
      deadLetterDestination: {
        endpointType: 'StorageBlob'
        properties: { resourceId: account.id, blobContainerName: deadLetterContainer }
      }
    }
    retryPolicy: { maxDeliveryAttempts: 30, eventTimeToLiveInMinutes: 1440 }
  }
  dependsOn: [lakeDelivers, lakeKeeps]
}

resource ended 'Microsoft.EventGrid/systemTopics/eventSubscriptions@2025-02-15' = {
  parent: workspaceTopic
  name: 'runs-to-queue'
  properties: {
    eventDeliverySchema: 'CloudEventSchemaV1_0'
    filter: {
      includedEventTypes: [
        'Microsoft.MachineLearningServices.RunCompleted'
        'Microsoft.MachineLearningServices.RunStatusChanged'
      ]
    }
    deliveryWithResourceIdentity: {
      identity: { type: 'SystemAssigned' }
      destination: { endpointType: 'ServiceBusQueue', properties: { resourceId: queue.id } }
    }
    deadLetterWithResourceIdentity: {
      identity: { type: 'SystemAssigned' }
      deadLetterDestination: {
        endpointType: 'StorageBlob'
        properties: { resourceId: account.id, blobContainerName: deadLetterContainer }
      }
    }
    retryPolicy: { maxDeliveryAttempts: 30, eventTimeToLiveInMinutes: 1440 }
  }
  dependsOn: [workspaceDelivers, workspaceKeeps]
}

output lakeTopicId string = lakeTopic.id
output workspaceTopicId string = workspaceTopic.id
